"""dba_core/attention"""
