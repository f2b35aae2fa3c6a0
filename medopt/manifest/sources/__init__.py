"""Sources of scans: DICOM, NIfTI, image folders, MedMNIST and MONAI datalists, each read as a ScanListing."""
