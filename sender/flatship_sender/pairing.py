"""A sender and a receiver get to know each other."""

import secrets

from flatship_protocol.handshake import pair_psk, standing_psk
from flatship_protocol.invitation import Invitation
from flatship_protocol.messages import Goodbye, encode
from flatship_sender.claims import SESSION_ID_SIZE
from flatship_sender.connecting import Credentials, SessionName, connect
from flatship_sender.receivers import Receiver, Receivers
from flatship_service.keys import Identity


async def pair(
    invitation: Invitation, name: str, identity: Identity, receivers: Receivers
) -> Receiver:
    """Pair with the receiver that made ``invitation`` and keep it under ``name``.

    Raises:
        TransferError: The receiver did not accept it; nothing was kept.
    """
    receivers.check_free(name, invitation.public)
    receiver = Receiver(
        name, invitation.endpoint, invitation.public, standing_psk(invitation.secret)
    )
    credentials = Credentials(identity.private, pair_psk(invitation.secret), invitation.id)
    session = SessionName(secrets.token_bytes(SESSION_ID_SIZE), 1)
    connection, _ = await connect(receiver, credentials, session, 0)
    receivers.save(receiver)
    await connection.send(encode(Goodbye(last=True), session.epoch))
    connection.close()
    return receiver
