"""dba_plugins/summarizers"""
