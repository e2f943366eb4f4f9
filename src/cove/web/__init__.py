"""What people look at in a browser: for now the page of the API. Everything is local; no other host is ever asked."""
