"""The PACS node: studies in by DICOM, the release's answers back as structured reports, nothing lost."""
