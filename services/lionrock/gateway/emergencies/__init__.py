"""Emergency access ("break-glass"): one person asks, another one approves, and for a time that ends by itself the first one reads.

What it opens is said by the access policies (`context.breakGlass`), which alone decide. Here is how an emergency comes to be
(servicer.py), where it is kept (rows.py), what the audit log says of it (leaves.py), which ones are in force now (live.py) and how
they end (closing.py).
"""
