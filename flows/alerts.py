"""What people are told at once: runs that failed, are late or refused their input, refused releases, and drift."""

from uuid import UUID

from prefect.automations import Automation
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import EventTrigger, Posture

WEBHOOK = "CLIP_WEBHOOK"  # the variable with the address that is told; who knows it can post there, so it is a secret
EVENTS = {
    "failed": {f"prefect.flow-run.{state}" for state in ("Failed", "Crashed", "TimedOut")},
    "late": {"prefect.flow-run.Late"},
    "refused": {"prefect.flow-run.Refused", "clip.refused"},
    "drifted": {"clip.drifted"},
}
BODY = (
    "{% if event.payload.told %}{{ event.payload.told }}{% else %}"
    "{{ flow.name }}, run {{ flow_run.name }}, is {{ flow_run.state.name }}: {{ flow_run.state.message }}"
    "{% endif %}"
)


def deploy(url: str | None) -> None:
    """Has Prefect post each of EVENTS to the webhook as `{"text": ...}`; without a webhook, no more to any."""
    with get_client(sync_client=True) as client:
        for kind in EVENTS:
            for old in client.read_automations_by_name(_name(kind)):
                client.delete_automation(old.id)
    if not url:
        return
    webhook = CustomWebhookNotificationBlock(
        name="clip", url="{{url}}", json_data={"text": "{{subject}}\n{{body}}"}, secrets={"url": url}
    )
    block = webhook.save("clip-alerts", overwrite=True)
    assert isinstance(block, UUID)  # where no loop runs it is saved at once
    for kind, events in EVENTS.items():
        Automation(
            name=_name(kind),
            trigger=EventTrigger(expect=events, posture=Posture.Reactive, threshold=1),
            actions=[SendNotification(block_document_id=block, subject=_name(kind), body=BODY)],
        ).create()


def _name(kind: str) -> str:
    return f"clip: {kind}"
