"""Core ML packages: conversion and compression."""
