"""Who calls: what a caller presents, checked, becomes the `Principal` that everything after the door believes.

`authenticator.Authenticator` is the one way in. It knows certificates' ids, people's tokens and API keys by the modules beside it,
and no wire: `failures.py` says what can be wrong in plain exceptions, which the gateway's listeners put on their wires.

    from lionrock.gateway.identity.authenticator import Authenticator, Presented
    principal = await authenticator.authenticate(Presented(spiffe_id=..., bearer=...))

What a refusal says and when it is said depend on nothing that its caller has no right to know: whether a tenant, an issuer, a key
or a person exists.
"""
