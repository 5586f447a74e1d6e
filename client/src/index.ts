import { Backoff, type BackoffOptions } from './backoff.js';
import { ask, Refused } from './gate.js';
import { type First, fromGate, isReserved, offer, Resumption } from './resume.js';
import { judge } from './verdict.js';

export type { BackoffOptions };

type Data = string | ArrayBufferLike | Blob | ArrayBufferView;

export interface Options {
  /** The application's own subprotocols. */
  protocols?: string | string[];
  /** Returns a token. It is asked for each new connection, and never twice at once. Left out: none is shown. */
  token?: () => string | Promise<string>;
  /** Where the token goes: a pair of subprotocols (AUTH_TOKEN_FROM=protocol:bearer), the query, or the first message. */
  tokenIn?: 'protocol' | 'query' | 'message';
  /** The query's parameter with tokenIn "query". "token" if left out. */
  tokenName?: string;
  /** Trade the token for a ticket first (TICKETS), which goes in the query. */
  tickets?: boolean;
  /** Show a fresh token before the session ends (RENEWAL). */
  renew?: boolean;
  /** Catch up on what was pushed while away, where the session is lost (PUSH_HISTORY). */
  history?: boolean;
  /** Come back to the same session, where the gate offers it (RESUME). True if left out. */
  resume?: boolean;
  backoff?: BackoffOptions;
  /** How many bytes may wait to be sent while there is no connection. 1 MiB if left out. */
  maxQueue?: number;
  /** Whether to come back after a close code that is not the gate's. Left out: never. */
  comeBack?: (code: number, reason: string) => boolean;
  /** What connects, where it is not the environment's own: ws's in Node before 22. */
  WebSocket?: typeof WebSocket;
  fetch?: typeof fetch;
}

/** The end of a socket, as a browser's CloseEvent has it. */
export class EndEvent extends Event {
  constructor(readonly code: number, readonly reason: string, readonly wasClean: boolean) { super('close'); }
}

/** The session is lost, and a new one begins. These messages were not acknowledged: they may have arrived or not, and are not sent again. */
export class ResetEvent extends Event {
  constructor(readonly messages: Data[]) { super('reset'); }
}

/** A connection is lost, and the next attempt begins after a delay in milliseconds, once the network and the page are there. */
export class ReconnectEvent extends Event {
  constructor(readonly code: number, readonly reason: string, readonly attempt: number, readonly delay: number) { super('reconnecting'); }
}

const attemptTime = 10_000; // ms for a connection to open, and for the gate's first message
const maxStale = 5; // returns in a row that come too late
const spread = 2_000; // ms over which clients that were sent away together come back, beside their back-off
const maxRefusals = 2; // of tokens in a row: a third would not be better
const accepted = 5_000; // ms after which an open connection was let in: one that is open to be refused is closed sooner

/**
 * A WebSocket that comes back. It has the shape of a WebSocket; `close` comes once, when there is no coming back, and says why.
 * Beside a WebSocket's events: `open` for every connection, `reconnecting` ([[ReconnectEvent]]) for every one that is lost, `gap`
 * where the history of pushes no longer reaches back to what was seen last. A session that goes on after a loss has `resumed` in place
 * of `open`; one that is lost for good has `reset` ([[ResetEvent]]), and then the `open` of the new one.
 */
export default class Portcullis extends EventTarget {
  static readonly CONNECTING = 0;
  static readonly OPEN = 1;
  static readonly CLOSING = 2;
  static readonly CLOSED = 3;

  onopen: ((event: Event) => void) | null = null;
  onmessage: ((event: MessageEvent) => void) | null = null;
  onerror: ((event: Event) => void) | null = null;
  onclose: ((event: EndEvent) => void) | null = null;

  readonly url: string;
  readonly #options: Options;
  readonly #backoff: Backoff;
  #binaryType: BinaryType = 'blob';
  #state = 0;
  #socket: WebSocket | null = null;
  #attempt = 0; // which is the present one; whatever belongs to another is late
  #opened = 0; // when the connection did, as of Date.now; 0: it has not
  #refusals = 0; // of tokens in a row
  #queue: Data[] = [];
  #queued = 0; // bytes
  #token: Promise<string> | null = null; // being asked for
  #hello = false; // the gate's first message has come
  #session = '';
  #lastPush = '';
  #plain: 0 | 1 | 2 = 0; // 2: no gate answers to the offer of resumption; 1: maybe, so this attempt is without
  #known = false; // one has
  #offered = false; // this connection has made it, and the gate's first message has not come
  #resumption: Resumption<Data> | null = null; // of the session; null: it cannot be resumed
  #left: WebSocket[] = []; // connections that are of no use, and whose Close would still end the session
  #closing: [number?, string?] | null = null; // how to close once all has been sent
  #timers: { [name in 'attempt' | 'wait' | 'renew' | 'ack' | 'silence' | 'pace']?: ReturnType<typeof setTimeout> } = {};

  constructor(url: string | URL, options: Options = {}) {
    super();
    const base = (globalThis as { location?: Location }).location?.href;
    const target = new URL(url, base);
    target.protocol = target.protocol.replace(/^http/, 'ws');
    this.url = target.href;
    this.#options = options;
    this.#backoff = new Backoff(options.backoff);
    void this.#connect();
  }

  get readyState(): number { return this.#state; }
  get protocol(): string {
    const chosen = this.#socket?.protocol ?? '';
    return chosen === 'bearer' || chosen === offer ? '' : chosen; // which is the gate's answer where the application chose none
  }
  get extensions(): string { return this.#socket?.extensions ?? ''; }
  get bufferedAmount(): number { return this.#queued + (this.#resumption?.waiting ?? 0) + (this.#socket?.bufferedAmount ?? 0); }
  get binaryType(): BinaryType { return this.#binaryType; }
  set binaryType(type: BinaryType) {
    this.#binaryType = type;
    if (this.#socket) this.#socket.binaryType = type;
  }

  /**
   * Sends a message, or keeps it until it can be sent. It returns false, and the message is dropped, where neither can be. It throws
   * for a text that begins as the messages of the gate and this library do.
   */
  send(data: Data): boolean {
    if (isReserved(data)) throw new TypeError('a text must not begin with U+0000 and "portcullis "');
    if (this.#state >= Portcullis.CLOSING) return false;
    if (this.#state === Portcullis.OPEN && !this.#resumption) {
      this.#socket!.send(data as string);
      return true;
    }
    const size = sizeOf(data);
    const waits = this.#queued + (this.#resumption?.waiting ?? 0);
    if (waits + size > (this.#options.maxQueue ?? 1 << 20) && (waits > 0 || this.#state !== Portcullis.OPEN)) return false;
    if (this.#resumption) {
      this.#resumption.keep(copyOf(data), size);
      this.#flush();
    } else {
      this.#queue.push(copyOf(data));
      this.#queued += size;
    }
    return true;
  }

  /** Ends it for good, once what was sent has gone. Without a connection that is at once, and not clean. */
  close(code?: number, reason?: string): void {
    if (this.#state >= Portcullis.CLOSING) return;
    if (code !== undefined && code !== 1000 && !(code >= 3000 && code <= 4999)) throw new RangeError(`close code ${code}: want 1000, or 3000 to 4999`);
    if (this.#state === Portcullis.OPEN) {
      this.#state = Portcullis.CLOSING;
      this.#closing = code === undefined ? [] : [code, reason];
      this.#flush();
    } else {
      this.#finish(1006, '', false);
    }
  }

  async #connect(): Promise<void> {
    const attempt = ++this.#attempt;
    this.#opened = 0;
    this.#hello = false;
    this.#session = '';
    let target: { url: string; protocols: string[]; first: string };
    try {
      target = await this.#target();
    } catch (error) {
      if (attempt === this.#attempt) this.#lost(error instanceof Refused ? error.code : 1006, (error as Error).message, false);
      return;
    }
    if (attempt !== this.#attempt) return;
    let socket: WebSocket;
    try {
      socket = new (this.#options.WebSocket ?? WebSocket)(target.url, target.protocols);
    } catch (error) {
      this.#finish(1006, (error as Error).message, false); // a URL or a subprotocol that cannot be: another attempt would not be better
      return;
    }
    this.#socket = socket;
    socket.binaryType = this.#binaryType;
    this.#timers.attempt = setTimeout(() => {
      if (socket.readyState === 1 && !this.#resumption) this.#first(null);
      else this.#lost(1006, 'no answer', false);
    }, attemptTime);
    socket.onopen = () => this.#open(target.first);
    socket.onmessage = (event) => this.#message(event);
    socket.onerror = () => {}; // the close that follows says what there is to say
    socket.onclose = ({ code, reason, wasClean }) => this.#lost(code, reason, wasClean);
  }

  /** What to connect to, with a credential. */
  async #target(): Promise<{ url: string; protocols: string[]; first: string }> {
    const { token, tickets, tokenIn = 'protocol', tokenName = 'token', history, protocols = [] } = this.#options;
    const url = new URL(this.url);
    const offered = typeof protocols === 'string' ? [protocols] : [...protocols];
    let first = '';
    this.#offered = this.#options.resume !== false && this.#plain === 0;
    if (this.#offered) offered.push(offer);
    if (this.#resumption) {
      offered.push(this.#resumption.entry()); // which is credential enough
      return { url: url.href, protocols: offered, first };
    }
    if (token) {
      const text = await this.#ask();
      if (tickets) url.searchParams.set('ticket', (await ask(this.#fetch, url, 'ticket', text)).ticket);
      else if (tokenIn === 'query') url.searchParams.set(tokenName, text);
      else if (tokenIn === 'message') first = text;
      else offered.push('bearer', text);
    }
    if (history) url.searchParams.set('portcullis_last_push', this.#lastPush);
    return { url: url.href, protocols: offered, first };
  }

  get #fetch(): typeof fetch { return this.#options.fetch ?? fetch; }

  /** Asks for a token, once for all who want one now. */
  #ask(): Promise<string> {
    this.#token ??= Promise.resolve().then(this.#options.token!).finally(() => { this.#token = null; });
    return this.#token;
  }

  #open(first: string): void {
    if (first) this.#socket!.send(first);
    if (!this.#offered) this.#opens();
  }

  /** The connection is good for messages: a new session. */
  #opens(): void {
    clearTimeout(this.#timers.attempt);
    this.#opened = Date.now();
    this.#state = Portcullis.OPEN;
    const queue = this.#queue.splice(0);
    this.#queued = 0;
    for (const data of queue) {
      if (this.#resumption) this.#resumption.keep(data, sizeOf(data));
      else this.#socket!.send(data as string);
    }
    this.#emit(new Event('open'), this.onopen);
    this.#flush();
  }

  /** Sends what may be sent now, and the Close behind it. */
  #flush(): void {
    clearTimeout(this.#timers.pace);
    if (!this.#socket || this.#state !== Portcullis.OPEN && !this.#closing) return;
    const r = this.#resumption;
    for (let next = r?.next(Date.now()); next !== null && next !== undefined; next = r!.next(Date.now())) {
      if (typeof next === 'number') {
        this.#timers.pace = setTimeout(() => this.#flush(), next);
        return;
      }
      this.#socket.send(next.data as string);
    }
    if (this.#closing && !r?.waiting) this.#socket.close(...this.#closing);
  }

  #message(event: MessageEvent): void {
    const { data, origin } = event;
    const said = this.#offered || this.#resumption ? fromGate(data) : null;
    if (this.#offered) {
      this.#first(said);
      return;
    }
    const r = this.#resumption;
    if (r) this.#listen(r);
    if (said) {
      if (r && said.resumable === false) r.resumable = false;
      if (said.push && this.#options.history) this.#lastPush = said.push;
      if (r && said.ack !== undefined) {
        r.acknowledge(said.ack);
        this.#acknowledge(r);
        this.#flush();
      }
      return;
    }
    const now = r?.count(sizeOf(data), Date.now());
    if (!this.#isOurs(data)) {
      this.#refusals = 0; // somebody let it in
      this.#emit(new MessageEvent('message', { data, origin }), this.onmessage);
    }
    if (!r || r !== this.#resumption || !this.#socket) return;
    if (now) this.#acknowledge(r);
    else this.#timers.ack ??= setTimeout(() => { if (r.owes) this.#acknowledge(r); }, 1000);
  }

  #acknowledge(r: Resumption<Data>): void {
    clearTimeout(this.#timers.ack);
    this.#timers.ack = undefined;
    if (this.#socket?.readyState === 1) this.#socket.send(r.acknowledgement());
  }

  /** Gives the connection up when nothing has come for too long. */
  #listen(r: Resumption<Data>): void {
    clearTimeout(this.#timers.silence);
    this.#timers.silence = setTimeout(() => {
      r.silent();
      this.#lost(1006, 'silence', false);
    }, r.patience);
  }

  /** The first message of a connection that offers resumption. */
  #first(said: Partial<First> | null): void {
    if (!said?.session) { // another message, which the next connection brings again, or none
      this.#plain = 2;
      this.#leave();
      void this.#connect();
      return;
    }
    const first = said as First;
    this.#offered = false;
    this.#hello = this.#known = true;
    this.#refusals = 0;
    this.#session = first.session;
    const { renew, history } = this.#options;
    if (history && first.push) this.#lastPush ||= first.push;
    if (renew && first.expires) this.#renewBefore(Date.parse(first.expires));
    const old = this.#resumption;
    if (first.resumed && old) {
      this.#dismiss();
      if (history && first.push) this.#lastPush = first.push;
      old.resume(first);
      this.#listen(old);
      this.#acknowledge(old);
      clearTimeout(this.#timers.attempt);
      this.#opened = Date.now();
      this.#state = Portcullis.OPEN;
      this.#emit(new Event('resumed'), null);
      this.#flush();
      return;
    }
    this.#reset();
    if (first.resumable) {
      this.#resumption = new Resumption(first);
      this.#listen(this.#resumption);
      this.#acknowledge(this.#resumption);
    }
    this.#opens();
  }

  /** Forgets a session that is lost, and tells of what was not acknowledged. */
  #reset(): void {
    const lost = this.#resumption;
    this.#resumption = null;
    this.#dismiss();
    if (lost) this.#emit(new ResetEvent(lost.unacknowledged), null);
  }

  /** Reads what the gate says of itself. The application's messages are never looked into, but for where such a one may be. */
  #isOurs(data: unknown): boolean {
    const { renew, history } = this.#options;
    if (!renew && !history || typeof data !== 'string' || !data.startsWith('{"portcullis":{')) return false;
    let said: { session?: string; expires?: string | null; push?: string; push_gap?: string };
    try {
      said = JSON.parse(data).portcullis;
    } catch {
      return false;
    }
    if (!this.#hello && said.session) {
      this.#hello = true;
      this.#session = said.session;
      this.#refusals = 0;
      if (history && said.push && !this.#lastPush) this.#lastPush = said.push;
      if (renew && said.expires) this.#renewBefore(Date.parse(said.expires));
      return true;
    }
    if (!history || !(said.push ?? said.push_gap)) return false;
    this.#lastPush = (said.push ?? said.push_gap)!;
    if (said.push_gap) this.#emit(new Event('gap'), null);
    return true;
  }

  /** Has a fresh token shown in time: a minute before the end, or a quarter of what is left where that is less. */
  #renewBefore(end: number): void {
    clearTimeout(this.#timers.renew);
    const left = end - Date.now();
    if (left > 0) this.#timers.renew = setTimeout(() => void this.#renew(end), Math.min(left - Math.min(60_000, left / 4), 0x7fffffff));
  }

  async #renew(end: number): Promise<void> {
    const session = this.#session;
    try {
      const { expires } = await ask(this.#fetch, new URL(this.url), 'session', await this.#ask(), { 'Portcullis-Session': session });
      if (session === this.#session && expires) this.#renewBefore(Date.parse(expires));
    } catch {
      // Again while there is time. If it does not work the session ends with 3000, and a new one begins.
      if (session === this.#session) this.#renewBefore(end);
    }
  }

  /** What follows the end of a connection, or of an attempt at one. */
  #lost(code: number, reason: string, wasClean: boolean): void {
    const asked = this.#state === Portcullis.CLOSING;
    const opened = this.#opened > 0;
    const lived = opened ? Date.now() - this.#opened : 0;
    this.#leave();
    const verdict = judge(code, reason);
    if (lived >= accepted) this.#refusals = 0;
    const r = this.#resumption;
    if (!asked && r && code === 3000 && reason === 'session unknown' || !asked && r && code === 1013 && reason === 'stale') {
      r.stale = code === 1013 ? r.stale + 1 : maxStale;
      this.#state = Portcullis.CONNECTING;
      if (r.stale >= maxStale) this.#reset();
      if (this.#state === Portcullis.CONNECTING) void this.#connect(); // unless the application has closed it meanwhile
      return;
    }
    if (verdict.credential) this.#refusals += 1;
    const hopeless = verdict.credential && (!this.#options.token || this.#refusals > maxRefusals);
    if (asked || hopeless || !verdict.again && !this.#options.comeBack?.(code, reason)) {
      this.#finish(code, reason, wasClean);
      return;
    }
    if (!r?.resumable || opened && wasClean) this.#reset(); // a Close of the gate's, or of the application behind it, ends the session
    if (!this.#known && this.#plain < 2) this.#plain = opened || this.#plain || code !== 1006 ? 0 : 1; // what answers may know nothing of the offer, and fail for it
    this.#state = Portcullis.CONNECTING;
    const delay = Math.max(this.#backoff.next(lived) + (verdict.crowd ? Math.random() * spread : 0), verdict.wait);
    this.#emit(new ReconnectEvent(code, reason, this.#backoff.failures, delay), null);
    const attempt = this.#attempt;
    this.#timers.wait = setTimeout(() => {
      void ready().then(() => { if (attempt === this.#attempt && this.#state === Portcullis.CONNECTING) void this.#connect(); });
    }, delay);
  }

  /** Has nothing more to do with a connection. */
  #leave(): void {
    for (const timer of Object.values(this.#timers)) clearTimeout(timer);
    this.#timers = {};
    this.#attempt += 1;
    const socket = this.#socket;
    this.#socket = null;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.onerror = () => {}; // ws throws an error that nobody listens to
    if (socket.readyState === 1 && this.#resumption) this.#left.push(socket);
    else if (socket.readyState < 2) socket.close();
  }

  /** Closes what was left: the session has another connection now, or is over. */
  #dismiss(): void {
    for (const socket of this.#left.splice(0)) socket.close();
  }

  #finish(code: number, reason: string, wasClean: boolean): void {
    this.#leave();
    this.#state = Portcullis.CLOSED;
    this.#queue = [];
    this.#queued = 0;
    this.#resumption = null;
    this.#dismiss();
    if (!wasClean) this.#emit(new Event('error'), this.onerror);
    this.#emit(new EndEvent(code, reason, wasClean), this.onclose);
  }

  #emit<E extends Event>(event: E, handler: ((event: E) => void) | null): void {
    handler?.call(this, event);
    this.dispatchEvent(event);
  }
}

/** The network is there, and the page can be seen: others can wait. In an environment without either it is so at once. */
async function ready(): Promise<void> {
  const page = globalThis as { navigator?: Navigator; document?: Document; addEventListener?: typeof addEventListener };
  while (page.navigator?.onLine === false) {
    await new Promise((resolve) => page.addEventListener!('online', resolve, { once: true }));
  }
  while (page.document?.hidden) {
    await new Promise((resolve) => page.document!.addEventListener('visibilitychange', resolve, { once: true }));
  }
}

/** What is kept of a message, which its sender may change once it is sent. */
function copyOf(data: Data): Data {
  if (typeof data === 'string' || 'size' in data) return data;
  return ArrayBuffer.isView(data) ? new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice() : data.slice(0);
}

function sizeOf(data: Data): number {
  if (typeof data === 'string') return new TextEncoder().encode(data).length;
  return 'size' in data ? data.size : data.byteLength;
}
