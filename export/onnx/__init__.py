"""ONNX graphs: conversion, half precision, compressed weights."""
