"""Core ML packages of a model: conversion, compression and 8-bit activations."""
