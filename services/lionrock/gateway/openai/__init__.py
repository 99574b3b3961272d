"""The OpenAI-compatible HTTP API: the requests and answers that clients already speak, over the gateway's one pipeline.

`app.py` is the door; `chat_fields.py` states every field of a request, from which docs/openai.md and the OpenAPI document are made.
Nothing here decides who may ask what, how much, or until when: that is the gateway's, whichever door a request comes by.
"""
