"""The agent on every instance: hears the two-minute notice first, and tells workers and the capacity Lambda."""
