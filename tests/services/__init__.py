"""Real services for the tests: started on free loopback ports, probed through their own protocols, stopped by id."""
