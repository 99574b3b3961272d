"""The vault: keys of records, where they are kept, who wraps them, and what is sealed with them."""
