"""Answer HTTP in a replica: routes, schemas, guards, documents, streams."""
