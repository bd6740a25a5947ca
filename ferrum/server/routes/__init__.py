"""One file per group of routes; ``ferrum.server.app`` lists them."""
