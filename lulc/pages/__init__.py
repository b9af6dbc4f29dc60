"""The report: what it says, its pictures and the map in it."""
