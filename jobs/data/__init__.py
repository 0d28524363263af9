"""From folders of pictures to training batches."""
