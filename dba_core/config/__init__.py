"""dba_core/config"""
