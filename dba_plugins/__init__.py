"""dba_plugins"""
