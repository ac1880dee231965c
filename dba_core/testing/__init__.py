"""dba_core/testing"""
