// What only the page at this very address knows: a browser sends cookies to every port of a machine, this to none.

// The path belongs to it: a proxy may serve several runs at one origin.
const KEY = `monitor-csrf ${location.pathname}`;
let known = null;

/** Take what logging in left behind the # out of the address bar and keep it for this origin, port included. */
export function receiveCsrf() {
  const given = /^#csrf=([\w-]{43})$/.exec(location.hash)?.[1];
  if (!given) return;
  history.replaceState(null, "", location.pathname);
  known = given;
  try {
    localStorage.setItem(KEY, given);
  } catch {
    // A browser that keeps nothing for us: this page can still change things, until it is closed.
  }
}

/** What proves with a change that this page sent it; null where nobody has logged in here. */
export function csrfToken() {
  try {
    return localStorage.getItem(KEY) ?? known;
  } catch {
    return known;
  }
}
