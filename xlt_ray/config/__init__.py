"""Configurations: sections with their defaults and meanings, read from YAML with overrides."""

from xlt_ray.config.read import build as build
from xlt_ray.config.read import dump as dump
from xlt_ray.config.read import load as load
from xlt_ray.config.read import plain as plain
from xlt_ray.config.read import read as read
