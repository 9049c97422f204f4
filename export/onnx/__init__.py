"""ONNX graphs of a model: conversion, half precision, weight compression and INT8."""
