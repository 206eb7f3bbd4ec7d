"""`make sanitize`: the C++ operators under AddressSanitizer and UBSan."""
