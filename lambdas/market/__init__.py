"""What Spot is worth, pool by pool, and which pools the fleet may have."""
