/** A refusal of one of the gate's own endpoints, told as the Close frame that would mean the same. */
export class Refused extends Error {
  constructor(readonly code: number, reason: string) { super(reason); }
}

/** Asks an endpoint of the gate's own: a ticket for a token, or another while for a session. */
export async function ask(fetcher: typeof fetch, url: URL, name: string, token: string, header: Record<string, string> = {}): Promise<any> {
  const target = new URL(`/.portcullis/${name}`, url);
  if (name === 'ticket') target.searchParams.set('path', url.pathname); // of the route that it opens
  target.protocol = url.protocol === 'wss:' || url.protocol === 'https:' ? 'https:' : 'http:';
  let response: Response;
  try {
    response = await fetcher(target, { method: 'POST', headers: { Authorization: `Bearer ${token}`, ...header } });
  } catch {
    throw new Refused(1006, `${name}: no answer`);
  }
  if (response.ok) return response.json();
  const text = (await response.text().catch(() => '')).trim();
  const retry = Number(response.headers.get('Retry-After'));
  throw new Refused(codeOf(response.status), (text || `${name}: status ${response.status}`) + (retry > 0 ? `; retry in ${retry} s` : ''));
}

/** The close code that a status amounts to. */
function codeOf(status: number): number {
  if (status === 401) return 3000;
  if (status === 403) return 3003;
  return status === 429 || status >= 500 ? 1013 : 1008;
}
