"""Files on local disks, s3:// and gs://, and the lease that keeps two runs apart."""
