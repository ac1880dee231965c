"""dba_plugins/decode"""
