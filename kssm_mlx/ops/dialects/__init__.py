"""What a kernel's body becomes in each dialect: the macros of all three, and the C++ one whole."""
