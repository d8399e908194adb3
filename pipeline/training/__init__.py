"""Training and measuring our own networks. The only package that imports torch; nothing on the live path imports it."""
