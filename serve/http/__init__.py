"""The HTTP interface of a replica: routes, schemas, guards, documents, streams."""
