"""From folders of pictures to training batches.

A picture's data has one type name in each step:

    SourceSample   listed in a folder, not opened                      jobs/data/sources/source.py
    Sample         opened and checked: JPEG file and segment map       egic/training/crops.py
    StoredSample   a Sample with its name and number, a row of a shard jobs/data/shards.py
    Crops          several crops of samples, as numpy arrays           jobs/data/stream.py
    Batch          the same as tensors, input of a training step       egic/training/steps.py
"""
