"""What the tests stand on: servers, databases and the backends built from them."""
