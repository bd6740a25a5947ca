"""Other APIs in front of the same requests: one file translates one dialect to a chat request and its deltas back."""
