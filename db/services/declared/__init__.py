"""Configuration as code: a document says what there is to be, and is compared with what there is.

A kind of thing is one module here and one line in :mod:`db.services.declared.document`.
"""
