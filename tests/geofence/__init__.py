"""Tests of the fences: geometry, cover, index, tracker, GeoJSON."""
