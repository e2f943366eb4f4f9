"""The network of sandboxes: a router namespace, interfaces, packet rules, the resolver and the proxies in it."""
