"""What all parts share: parameters, stages, locks, the device, folders of shards."""
