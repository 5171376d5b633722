"""The rules: one module per operator family, each importing only `deepshap_ir.extend`."""
