"""Sources of scans: DICOM, NIfTI, image folders, MedMNIST and MONAI datalists, each read to the same records."""
