"""Build results: added atomically, looked up by name, collected when nothing refers to them."""

from microvm.store.collect import Collected, Verified
from microvm.store.contents import Amount, Contents
from microvm.store.store import Store, item_name

__all__ = ["Amount", "Collected", "Contents", "Store", "Verified", "item_name"]
