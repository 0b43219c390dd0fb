"""Publishing: folder and dashboards into a Grafana over its API, all of them or none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from monitor.grafana._api import TIMEOUT_SECONDS, GrafanaError, connect, disconnect, explained, shown
from monitor.grafana._files import FOLDER, FOLDER_UID, dashboards
from monitor.grafana._panel import Json

_Undo = tuple[str, Callable[[], Any]]  # what was changed, and what takes it back


@dataclass(frozen=True, slots=True)
class Published:
    """What was published: (title, URL) of each dashboard, and the data source with what Grafana says of its health."""

    dashboards: tuple[tuple[str, str], ...]
    datasource: str
    is_healthy: bool
    health: str


def publish(
    url: str,
    *,
    token: str | None = None,
    folder: str = FOLDER,
    datasource: str | None = None,
    overwrite: bool = True,
    timeout: float = TIMEOUT_SECONDS,
) -> Published:
    """Put the dashboards into a folder of a running Grafana.

    The data source is looked for first, so that nothing is written to a Grafana without one. When a dashboard is
    refused, those that went before are put back to what they were, and a folder made for them is taken away.

    Args:
        url: address of the Grafana; may carry a login.
        token: service account token with the role Editor.
        folder: title of the folder, made where it is missing.
        datasource: uid of the Prometheus data source; default: Grafana's default, else its first Prometheus.
        overwrite: whether a dashboard that was changed by hand since is replaced.
        timeout: seconds for each request.

    Returns:
        Published: what is there now. A data source that is not healthy is reported, not refused.

    Raises:
        GrafanaError: with the address, what was tried, the status, and the cure.

    Example:
        >>> publish("http://127.0.0.1:3000", token="glsa_...").dashboards[0]     # doctest: +SKIP
        ('Training: overview', 'http://127.0.0.1:3000/d/training-monitor-overview/training-overview')
    """
    api = connect(url, token, timeout)
    try:
        return _publish(api, url, folder, datasource, overwrite)
    finally:
        disconnect(api)


def _publish(api: Any, url: str, folder: str, datasource: str | None, overwrite: bool) -> Published:
    base = shown(url).rstrip("/")
    with explained(url, "listing its data sources"):
        source = _choose(api.datasource.list_datasources(), datasource, base)
        uid = str(source["uid"])
        source = {"uid": uid, "name": str(source.get("name") or uid)}
    is_healthy, health = _health(api, url, uid)
    undo: list[_Undo] = []
    try:
        folder_uid = _folder(api, url, folder, undo)
        done = [
            (each.title, base + _put(api, url, _aimed(each.render(), source), folder_uid, overwrite, undo))
            for each in dashboards()
        ]
    except BaseException as error:
        left = _take_back(url, undo)
        if left and isinstance(error, GrafanaError):
            message = f"{error}; half-published may be: {', '.join(left)}; publish again once it answers"
            raise GrafanaError(message, error.status) from error
        raise
    return Published(tuple(done), source["name"], is_healthy, health)


def _take_back(url: str, undo: list[_Undo]) -> list[str]:
    """Undo everything, the last first; return what may be left. What is not there (any more) needs no undoing."""
    left: list[str] = []
    while undo:
        what, step = undo.pop()
        error = _error_of(url, what, step)
        if error is None or error.status == 404:
            continue
        left.insert(0, what)
        if error.status is None:  # Grafana is gone: every further try would take as long
            return [*(name for name, _ in undo), *left]
    return left


def _error_of(url: str, what: str, step: Callable[[], Any]) -> GrafanaError | None:
    try:
        with explained(url, f"taking back {what}"):
            step()
    except GrafanaError as error:
        return error
    return None


def _choose(sources: list[Json], wanted: str | None, base: str) -> Json:
    known = [source for source in sources if source.get("type") == "prometheus"]
    if wanted is not None:
        known = [source for source in known if source.get("uid") == wanted]
    if not known:
        which = f"with the uid {wanted!r}" if wanted else "of Prometheus"
        raise GrafanaError(f"{base} has no data source {which}; add one there, or give its uid with --datasource", 404)
    return next((source for source in known if source.get("isDefault")), known[0])


def _health(api: Any, url: str, uid: str) -> tuple[bool, str]:
    try:
        with explained(url, "checking the data source"):
            answer = api.datasource.health(uid)
            return answer.get("status") == "OK", str(answer.get("message", ""))
    except GrafanaError as error:
        return False, str(error)


def _folder(api: Any, url: str, title: str, undo: list[_Undo]) -> str:
    with explained(url, "listing its folders"):
        known = [str(each["uid"]) for each in api.folder.get_all_folders() if each["title"] == title]
    if known:
        return known[0]
    with explained(url, f"making the folder {title!r}"):
        uid = str(api.folder.create_folder(title, FOLDER_UID if title == FOLDER else None)["uid"])
    undo.append((f"the folder {title!r}", lambda: api.folder.delete_folder(uid)))
    return uid


def _put(api: Any, url: str, dashboard: Json, folder_uid: str, overwrite: bool, undo: list[_Undo]) -> str:
    """Save one dashboard and return its path. It goes onto ``undo`` first: an answer may be lost after the deed."""
    old, what = _existing(api, url, dashboard["uid"]), f"the dashboard {dashboard['title']!r}"
    if old is None:
        undo.append((what, lambda: api.dashboard.delete_dashboard(dashboard["uid"])))
    else:
        undo.append((what, lambda: api.dashboard.update_dashboard(old)))
    sent = {
        "dashboard": {**dashboard, "id": None},
        "folderUid": folder_uid,
        "overwrite": overwrite,
        "message": "training-monitor",
    }
    with explained(url, f"saving {what}"):
        return str(api.dashboard.update_dashboard(sent)["url"])


def _existing(api: Any, url: str, uid: str) -> Json | None:
    """Return what puts the dashboard back to what it is now, None where there is none."""
    try:
        with explained(url, f"looking for the dashboard {uid!r}"):
            found = api.dashboard.get_dashboard(uid)
            folder_uid = found["meta"].get("folderUid", "")
            return {"dashboard": found["dashboard"], "folderUid": folder_uid, "overwrite": True}
    except GrafanaError as error:
        if error.status == 404:
            return None
        raise


def _aimed(dashboard: Json, source: Json) -> Json:
    """Return the dashboard with the data source preset."""
    first, *others = dashboard["templating"]["list"]
    chosen = {"selected": True, "text": source["name"], "value": source["uid"]}
    return {**dashboard, "templating": {"list": [{**first, "current": chosen}, *others]}}
