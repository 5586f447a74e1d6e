// Each test has the name of a scenario of the protocol's model, or of what else the library must do to come back. The real gate and the
// real library play it, with sockets that break.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import WebSocket from 'ws';
import Portcullis from '../dist/index.js';
import { next, startGate } from './gate.mjs';
import { startApplication, startProxy } from './faults.mjs';

/** An application, a gate whose sessions are resumable, a proxy before it and a client that is open. */
async function start(t, { onMessage, settings, options, token = 'token' } = {}) {
  const app = await startApplication(t, onMessage);
  const gate = await startGate(t, {
    UPSTREAM_URL: app.url, AUTH_MODE: 'none', AUTH_TOKEN_FROM: '', RATE_AUTH_FAILURES_PER_IP: '',
    RESUME: '4s', RESUME_BUFFER: '4KiB', MESSAGE_MAX_BYTES: '2KiB', ...settings,
  });
  const proxy = await startProxy(t, gate.front);
  const socket = new Portcullis(`ws://${proxy.address}/`, { WebSocket, backoff: { min: 20, max: 100 }, ...options });
  t.after(() => socket.close());
  const got = [];
  const events = [];
  socket.addEventListener('message', ({ data }) => got.push(data));
  for (const name of ['open', 'resumed', 'reset', 'close']) socket.addEventListener(name, () => events.push(name));
  await next(socket, 'open');
  return { app, gate, proxy, socket, got, events };
}

/** Waits until something is so. */
async function until(what, condition, most = 10_000) {
  for (const end = Date.now() + most; !condition();) {
    assert.ok(Date.now() < end, `in time: ${what}`);
    await sleep(10);
  }
}

const numbers = (n, from = 0) => Array.from({ length: n }, (_, i) => String(from + i));

/** A numbered stream in both directions, broken in every way that a list has. */
function stream(name, faults, { echo = 0, messages = 40, settings, between = 25 } = {}) {
  test(name, async (t) => {
    let sent = 0;
    const { app, proxy, socket, got, events } = await start(t, {
      settings,
      onMessage: (upstream) => { for (let i = 0; i < (echo || 1); i += 1) upstream.send(String(sent++)); },
    });
    const broken = (async () => {
      for (const fault of faults) {
        await sleep(between);
        const link = proxy.last();
        link[fault]();
        await until(`a new connection after ${fault}`, () => proxy.last() !== link, 25_000);
      }
    })();
    for (const n of numbers(messages)) {
      assert.equal(socket.send(n), true);
      await sleep(5);
    }
    await broken;
    await until('all that was sent', () => app.got.length >= messages && got.length >= messages * (echo || 1), 20_000);
    assert.deepEqual(app.got, numbers(messages));
    assert.deepEqual(got, numbers(messages * (echo || 1)));
    assert.equal(app.sockets.length, 1);
    assert.ok(!events.includes('reset'));
    assert.equal(events.filter((name) => name === 'open').length, 1);
  });
}

stream('fixed-echo', ['reset', 'end', 'reset'], { echo: 3 });
stream('fixed-net-2', ['stall', 'half']);
stream('fixed-net-3-loud', ['reset', 'end', 'half']);
stream('fixed-3-messages', ['reset', 'reset', 'end', 'end', 'half'], { messages: 100 });
stream('no-beat', ['stall']); // a half-open connection is noticed though nobody has anything to say

test('no-window', async (t) => {
  // The application answers three for one and reads no more before its answers are taken: without a window both would wait for ever.
  let sent = 0;
  const { app, socket, got } = await start(t, { onMessage: (upstream) => { for (let i = 0; i < 3; i += 1) upstream.send(String(sent++).padEnd(900, '.')); } });
  for (const n of numbers(60)) assert.equal(socket.send(n.padEnd(900, '.')), true);
  await until('all', () => got.length === 180, 20_000);
  assert.equal(app.got.length, 60);
});

test('received-frees-window', async (t) => {
  // After a return the gate has received all, and the application has read nothing: the window stays closed.
  const { app, proxy, socket, gate } = await start(t, { settings: { RESUME: '20s' } });
  await until('its upstream', () => app.sockets.length === 1);
  app.sockets[0].pause();
  const big = '.'.repeat(1900);
  let taken = 0;
  while (socket.send(big)) taken += 1;
  await sleep(200);
  for (let i = 0; i < 3; i += 1) {
    const back = next(socket, 'resumed');
    proxy.last().reset();
    await back;
    await sleep(100);
  }
  const metrics = await (await fetch(`http://${gate.admin}/metrics`)).text();
  const kept = Number(/^portcullis_resume_kept_bytes (\S+)/m.exec(metrics)[1]);
  assert.ok(kept < 4096 + 2 * 2048, `${kept} bytes are kept`);
  app.sockets[0].resume();
  await until('all', () => app.got.length === taken, 20_000);
});

test('no-attempt-number', async (t) => {
  // A request that was abandoned arrives late, after the next was taken.
  const { app, proxy, socket, got } = await start(t, { onMessage: (upstream, m) => upstream.send(m) });
  proxy.onLink = (link) => { link.stall(); }; // the next is swallowed
  proxy.last().reset();
  await until('an attempt', () => proxy.requests.length === 2);
  const late = proxy.requests[1];
  proxy.onLink = () => {};
  proxy.last().reset();
  await next(socket, 'resumed');
  assert.match(await proxy.again(late), /stale/);
  socket.send('after');
  await until('the echo', () => got.length === 1);
  assert.deepEqual(app.got, ['after']);
});

test('no-first-deadline', { timeout: 40_000 }, async (t) => {
  // The first message of a return never comes: the attempt is abandoned after ten seconds.
  const { app, proxy, socket, got } = await start(t, { settings: { RESUME: '1m' }, onMessage: (upstream, m) => upstream.send(m) });
  proxy.onLink = (link) => { link.downOpen = false; };
  proxy.last().reset();
  await until('an attempt', () => proxy.requests.length === 2);
  proxy.onLink = () => {};
  const began = Date.now();
  await next(socket, 'resumed');
  assert.ok(Date.now() - began > 8000);
  socket.send('after');
  await until('the echo', () => got.length === 1);
  assert.equal(app.sockets.length, 1);
});

test('beat-not-answered-behind-proxy', async (t) => {
  // Something on the way answers the gate's pings, and what the client says is lost: the gate gives the connection up all the same.
  const { proxy, socket, gate } = await start(t, { settings: { PING_INTERVAL: '1s', PONG_TIMEOUT: '1s', LOG_LEVEL: 'debug' } });
  const link = proxy.last();
  link.upOpen = false;
  await Promise.all([next(socket, 'resumed'), until('the gate gives it up', () => link.gate.destroyed || proxy.links.length > 1)]);
  assert.ok(gate.front);
});

test('upstream-close-not-kept', async (t) => {
  const { app, proxy, socket, got, events } = await start(t);
  await until('its upstream', () => app.sockets.length === 1);
  proxy.onLink = (link) => { link.stall(); };
  proxy.last().reset();
  await until('an attempt', () => proxy.links.length === 2);
  for (const n of numbers(3)) app.sockets[0].send(n);
  app.sockets[0].close(4000, 'done');
  await sleep(200);
  proxy.onLink = () => {};
  proxy.last().reset();
  const { code, reason } = await next(socket, 'close');
  assert.deepEqual([code, reason, got, events], [4000, 'done', numbers(3), ['open', 'resumed', 'close']]);
});

test('client-unread-after-close', async (t) => {
  // The application has closed and the client sends on: it is read, and gets the Close.
  const { app, socket } = await start(t, { onMessage: (upstream) => upstream.close(4001, 'enough') });
  const end = next(socket, 'close');
  for (const n of numbers(30)) socket.send(n.padEnd(900, '.'));
  const { code } = await end;
  assert.equal(code, 4001);
  assert.ok(app.got.length >= 1);
});

test('client-close-drops-buffer', async (t) => {
  const { app, socket } = await start(t);
  await until('its upstream', () => app.sockets.length === 1);
  app.sockets[0].pause();
  for (const n of numbers(4)) socket.send(n.padEnd(500, '.'));
  const end = next(socket, 'close');
  socket.close(4002, 'bye');
  await sleep(300);
  app.sockets[0].resume();
  await end;
  await until('all', () => app.closes.length === 1);
  assert.equal(app.got.length, 4);
  assert.deepEqual(app.closes, [[4002, 'bye']]);
});

test('ghost-session', { timeout: 40_000 }, async (t) => {
  // A client that never got its first message leaves a session that nobody knows: it is kept for ten seconds, not for a minute.
  const { app, proxy, gate } = await start(t, { settings: { RESUME: '1m' } });
  await until('its upstream', () => app.sockets.length === 1);
  proxy.onLink = (link) => { link.downOpen = false; setTimeout(() => link.reset(), 100); };
  const ghost = new Portcullis(`ws://${proxy.address}/`, { WebSocket, backoff: { min: 60_000, max: 60_000 } });
  t.after(() => ghost.close());
  await until('the ghost', () => app.sockets.length === 2);
  ghost.close();
  const began = Date.now();
  await until('the end of the ghost', () => app.closes.length === 1, 20_000);
  assert.ok(Date.now() - began > 8000);
  assert.equal((await gate.api('GET', '/sessions')).sessions.length, 1);
});

test('ping-open-at-takeover', async (t) => {
  const { app, proxy, socket } = await start(t);
  await until('its upstream', () => app.sockets.length === 1);
  let pongs = 0;
  app.sockets[0].on('pong', () => { pongs += 1; });
  proxy.last().half();
  app.sockets[0].ping('open');
  await next(socket, 'resumed');
  await until('the pong', () => pongs === 1);
});

test('own-slot-counted', async (t) => {
  const { proxy, socket } = await start(t, { settings: { LIMIT_SESSIONS_PER_IP: '1' } });
  for (let i = 0; i < 3; i += 1) {
    const back = next(socket, 'resumed');
    proxy.last().half();
    await back;
  }
});

for (const name of ['proxy-copies-stale-is-final', 'proxy-copies-equal-passes', 'proxy-copies-no-attempt-number', 'fixed-proxy-copies']) {
  test(name, async (t) => {
    // A proxy sends the request of a return twice. The copy comes first, at the same time, or long after.
    const { app, proxy, socket, got, events } = await start(t, { onMessage: (upstream, m) => upstream.send(m) });
    for (let i = 0; i < 4; i += 1) {
      const before = proxy.requests.length;
      proxy.onLink = (link) => {
        if (i % 2) return;
        const { write } = link.gate;
        link.gate.write = (chunk) => { // the copy first
          link.gate.write = write;
          void proxy.again(chunk.toString('latin1')).then(() => write.call(link.gate, chunk));
          return true;
        };
      };
      const back = next(socket, 'resumed');
      proxy.last().reset();
      await until('the request', () => proxy.requests.length > before);
      proxy.onLink = () => {};
      if (i % 2) void proxy.again(proxy.requests[before]);
      await back;
      socket.send(String(i));
      await until('the echo', () => got.length === i + 1);
      if (name !== 'proxy-copies-stale-is-final') assert.match(await proxy.again(proxy.requests[before]), /stale/);
    }
    assert.deepEqual(app.got, numbers(4));
    assert.ok(!events.includes('reset'));
  });
}

test('mutant-not-frozen', async (t) => {
  // What the old connection still holds when the client is back is not taken.
  const { app, proxy, socket } = await start(t, { settings: { RESUME: '20s' } });
  const old = proxy.last();
  old.upOpen = false;
  const held = [];
  old.client.on('data', (chunk) => held.push(chunk));
  socket.send('once');
  await until('the message', () => held.length > 0);
  const back = next(socket, 'resumed');
  old.client.resetAndDestroy();
  old.gate.removeAllListeners('close');
  for (const chunk of held) old.gate.write(chunk); // late
  await back;
  await until('the message', () => app.got.length > 0);
  await sleep(200);
  assert.deepEqual(app.got, ['once']);
});

test('mutant-void-at-once', async (t) => {
  // The first message of a return is lost, and with it the new token: the old one is good once more.
  const { proxy, socket, events } = await start(t);
  proxy.onLink = (link) => {
    link.gate.once('data', () => {}); // the answer is taken, and goes nowhere
    link.downOpen = false;
    setTimeout(() => link.reset(), 100);
    proxy.onLink = () => {};
  };
  const back = next(socket, 'resumed');
  proxy.last().reset();
  await back;
  assert.deepEqual(events, ['open', 'resumed']);
});

test('fixed-second-holder', async (t) => {
  // Somebody else has the token and takes the session: its owner is told, and does not fight.
  const { proxy, socket, events, gate } = await start(t);
  const back = next(socket, 'resumed');
  proxy.last().reset();
  await back;
  const first = proxy.requests.at(-1);
  await sleep(100);
  assert.match(await proxy.again(first), /stale/, 'an old token');
  assert.deepEqual(events, ['open', 'resumed']);
  assert.equal((await gate.api('GET', '/sessions')).sessions.length, 1);
});

test('alt-return-after-taken-over', async (t) => {
  const { proxy, socket, events } = await start(t);
  proxy.onLink = (link) => { link.stall(); };
  proxy.last().reset();
  await until('an attempt', () => proxy.requests.length === 2);
  // The thief has seen this request and comes before its sender.
  const [, token] = /resume\.v1\.([^.]+)\.\d+\.\d+/.exec(proxy.requests[1]);
  proxy.onLink = () => {};
  proxy.last().reset();
  await next(socket, 'resumed');
  const thief = new WebSocket(`ws://${proxy.address}/`, ['portcullis.resume.v1', `portcullis.resume.v1.${token}.0.9`]);
  const [code] = await new Promise((resolve) => { thief.on('error', () => {}); thief.on('close', (...end) => resolve(end)); });
  assert.equal(code, 1013, 'an old token takes nothing');
  assert.deepEqual(events, ['open', 'resumed']);
});

test('fixed-causes', async (t) => {
  // The session ends while its client is away: it is told what was not acknowledged, and begins anew.
  const { app, proxy, socket, events, gate } = await start(t);
  let messages;
  socket.addEventListener('reset', (event) => { messages = event.messages; });
  proxy.onLink = (link) => { link.stall(); };
  proxy.last().reset();
  await until('an attempt', () => proxy.links.length === 2);
  socket.send('lost');
  await gate.api('DELETE', '/sessions?all=true');
  proxy.onLink = () => {};
  proxy.last().reset();
  await until('a new session', () => events.length === 3);
  assert.deepEqual([messages, events], [['lost'], ['open', 'reset', 'open']]);
  socket.send('new');
  await until('the message', () => app.got.length === 1);
  assert.deepEqual(app.got, ['new']);
});

test('fixed-client-closes', async (t) => {
  const { app, proxy, socket } = await start(t);
  for (const n of numbers(20)) socket.send(n);
  const end = next(socket, 'close');
  socket.close(1000, 'done');
  const { code, wasClean } = await end;
  await until('all', () => app.closes.length === 1);
  assert.deepEqual([code, wasClean, app.got, app.closes], [1000, true, numbers(20), [[1000, 'done']]]);
  assert.equal(proxy.links.length, 1);
});

test('fixed-pushes-pings', async (t) => {
  const { app, proxy, socket, got, gate } = await start(t, {
    settings: { PUSH_HISTORY: '100,1m' }, options: { history: true },
  });
  await until('its upstream', () => app.sockets.length === 1);
  let pongs = 0;
  app.sockets[0].on('pong', () => { pongs += 1; });
  for (let i = 0; i < 6; i += 1) {
    app.sockets[0].ping(String(i));
    await gate.api('POST', '/messages?all=true', String(i));
    if (i % 2) {
      const back = next(socket, 'resumed');
      proxy.last()[i === 1 ? 'reset' : 'half']();
      await back;
    }
  }
  await until('all', () => got.length === 6 && pongs === 6);
  assert.deepEqual(got, numbers(6));
});

test('mutant-pong-shows', async (t) => {
  // The page stands still when the first message of a return has come, and only its browser answers pings: the token before is good once more.
  const { proxy, socket, got, app } = await start(t, { onMessage: (upstream, m) => upstream.send(m), settings: { PING_INTERVAL: '1s', PONG_TIMEOUT: '1s' } });
  proxy.onLink = (link) => { // pongs pass, and nothing else that the client says
    const { write } = link.gate;
    let head = true;
    link.gate.write = (chunk) => {
      if (head) head = !chunk.includes('\r\n\r\n');
      else if ((chunk[0] & 15) !== 10) return true;
      return write.call(link.gate, chunk);
    };
  };
  let back = next(socket, 'resumed');
  proxy.last().reset();
  await back;
  proxy.onLink = () => {};
  back = next(socket, 'resumed');
  await sleep(1500);
  proxy.last().reset();
  await back;
  socket.send('after');
  await until('the echo', () => got.length === 1);
  assert.equal(app.sockets.length, 1);
});

test('mutant-old-connection-shows', async (t) => {
  // What the old connection still holds shows no token: the newest, which it was given, is not void for it.
  const { proxy, socket, got, events } = await start(t, { onMessage: (upstream, m) => upstream.send(m) });
  for (let i = 0; i < 3; i += 1) {
    const old = proxy.last();
    const held = [];
    old.upOpen = false;
    old.client.on('data', (chunk) => held.push(chunk));
    socket.send(String(i));
    await until('the message', () => held.length > 0);
    const back = next(socket, 'resumed');
    old.gate.removeAllListeners('close');
    old.client.resetAndDestroy();
    await back;
    for (const chunk of held) old.gate.write(chunk); // late
    await until('the echo', () => got.length === i + 1);
  }
  assert.deepEqual([got, events.includes('reset')], [numbers(3), false]);
});

test('mutant-client-reads-old', async (t) => {
  // What the old connection brings when the client has left it is not delivered, for it comes again.
  const { app, proxy, socket, got } = await start(t, { settings: { RESUME: '4s' } });
  await until('its upstream', () => app.sockets.length === 1);
  const old = proxy.last();
  old.downOpen = false;
  const held = [];
  old.gate.on('data', (chunk) => held.push(chunk));
  for (const n of numbers(3)) app.sockets[0].send(n);
  await next(socket, 'resumed'); // after two beats of silence
  await until('all', () => got.length === 3);
  for (const chunk of held) old.client.write(chunk);
  await sleep(200);
  assert.deepEqual(got, numbers(3));
});

for (const name of ['alt-fresh-next-token', 'alt-fresh-next-no-attempt-number']) {
  test(name, async (t) => {
    // Return after return by one token: each answer is lost, each gives another next token, and the last of them is good.
    const { app, proxy, socket, got, events } = await start(t, { onMessage: (upstream, m) => upstream.send(m) });
    const requests = [];
    for (let i = 0; i < 3; i += 1) {
      proxy.onLink = (link) => { link.downOpen = false; setTimeout(() => link.reset(), 150); };
      const before = proxy.requests.length;
      proxy.last().reset();
      await until('a return', () => proxy.requests.length > before);
      requests.push(proxy.requests[before]);
      await sleep(100);
    }
    proxy.onLink = () => {};
    await next(socket, 'resumed');
    for (const late of requests) assert.match(await proxy.again(late), /stale/);
    socket.send('after');
    await until('the echo', () => got.length === 1);
    assert.deepEqual([app.got, events.includes('reset')], [['after'], false]);
  });
}

test('fixed-causes-2-faults', async (t) => {
  // Its connection is lost twice, and the session ends in between.
  const { app, proxy, socket, events, gate } = await start(t);
  const back = next(socket, 'resumed');
  proxy.last().half();
  await back;
  proxy.onLink = (link) => { link.stall(); };
  proxy.last().half();
  await until('an attempt', () => proxy.links.length === 3);
  await gate.api('DELETE', '/sessions?all=true');
  proxy.onLink = () => {};
  proxy.last().reset();
  await until('a new session', () => events.at(-1) === 'open' && events.length > 2);
  assert.deepEqual(events, ['open', 'resumed', 'reset', 'open']);
  socket.send('new');
  await until('the message', () => app.got.length === 1);
});

test('fixed-behind-proxy', async (t) => {
  // Something on the way answers the pings of both ends, and the way behind it is broken: both notice by their beats.
  const { app, proxy, socket, got } = await start(t, { onMessage: (upstream, m) => upstream.send(m), settings: { PING_INTERVAL: '1s', PONG_TIMEOUT: '1s' } });
  for (let i = 0; i < 2; i += 1) {
    const back = next(socket, 'resumed');
    proxy.last().stall();
    socket.send(String(i));
    await back;
    await until('the echo', () => got.length === i + 1);
  }
  assert.deepEqual([app.got, app.sockets.length], [numbers(2), 1]);
});

test('fixed-upstream-closes', async (t) => {
  const { app, proxy, socket, got } = await start(t);
  await until('its upstream', () => app.sockets.length === 1);
  const end = next(socket, 'close');
  proxy.last().half();
  for (const n of numbers(5)) app.sockets[0].send(n);
  app.sockets[0].close(4003, 'done');
  const { code, reason } = await end;
  assert.deepEqual([code, reason, got], [4003, 'done', numbers(5)]);
});

test('fixed-upstream-closes-causes', async (t) => {
  // The application has closed, and then the session ends before its client is back: the client begins anew.
  const { app, proxy, socket, events, gate } = await start(t);
  await until('its upstream', () => app.sockets.length === 1);
  proxy.onLink = (link) => { link.stall(); };
  proxy.last().reset();
  await until('an attempt', () => proxy.links.length === 2);
  app.sockets[0].close(4003, 'done');
  await until('the end of the upstream', () => app.closes.length === 1);
  await sleep(100);
  await gate.stop();
  proxy.onLink = () => {};
  proxy.last().reset();
  await next(socket, 'reconnecting');
  assert.deepEqual(events, ['open']);
  socket.close();
  assert.deepEqual(events, ['open', 'close']);
});

test('without RESUME the offer changes nothing', async (t) => {
  const { app, proxy, socket, got, events } = await start(t, {
    settings: { RESUME: '', RESUME_BUFFER: '', MESSAGE_MAX_BYTES: '' }, onMessage: (upstream, m) => upstream.send(m),
  });
  socket.send('one');
  await until('the echo', () => got.length === 1);
  proxy.last().reset();
  await next(socket, 'open');
  assert.equal(app.sockets.length, 2);
  assert.deepEqual(events, ['open', 'open']);
});

test('a server that is no gate', async (t) => {
  const app = await startApplication(t, (upstream, m) => upstream.send(m));
  const got = [];
  const socket = new Portcullis(app.url, { WebSocket, backoff: { min: 20, max: 100 } });
  t.after(() => socket.close());
  socket.addEventListener('message', ({ data }) => got.push(data));
  app.sockets.length = 0;
  const greeted = until('a connection', () => app.sockets.length > 0).then(() => app.sockets[0].send('greeting'));
  await greeted;
  await next(socket, 'open');
  socket.send('hello');
  await until('the echo', () => got.length === 1);
  assert.deepEqual(got, ['hello']);
});

test('send throws for a text that begins as the gate\'s own', async (t) => {
  const { socket } = await start(t);
  assert.throws(() => socket.send('\0portcullis {}'), TypeError);
  assert.throws(() => socket.close(1001), RangeError);
});

test('it keeps to the rates that the gate tells', async (t) => {
  const { app, socket, events } = await start(t, { settings: { MESSAGE_RATE: '50/s', MESSAGE_BURST: '10' } });
  for (const n of numbers(40)) assert.equal(socket.send(n), true);
  await until('all', () => app.got.length === 40);
  assert.deepEqual([app.got, events], [numbers(40), ['open']]);
});

test('a token is asked for once, and not for a return', async (t) => {
  let asked = 0;
  const { proxy, socket } = await start(t, {
    settings: { UPSTREAM_URL: '', AUTH_MODE: '', AUTH_TOKEN_FROM: '' }, options: { token: () => { asked += 1; return 'token'; } },
  });
  for (let i = 0; i < 3; i += 1) {
    const back = next(socket, 'resumed');
    proxy.last().reset();
    await back;
  }
  assert.equal(asked, 1);
});

test('an idle session stays on one connection', async (t) => {
  const { proxy, events } = await start(t);
  await sleep(5000);
  assert.deepEqual([proxy.links.length, events], [1, ['open']]);
});

test('a connection that is given up ends no session', async (t) => {
  // What the gate says is lost, and what the client says is not: it must not be a Close.
  const { proxy, socket, events } = await start(t);
  proxy.last().downOpen = false;
  await next(socket, 'resumed');
  assert.deepEqual(events, ['open', 'resumed']);
});

test('a refusal is no reason to do without resumption', async (t) => {
  let asked = 0;
  const { proxy, socket } = await start(t, {
    settings: { UPSTREAM_URL: '', AUTH_MODE: '', AUTH_TOKEN_FROM: '' }, options: { token: () => { asked += 1; return asked === 1 ? 'wrong' : 'token'; } },
  });
  const back = next(socket, 'resumed');
  proxy.last().reset();
  await back;
  assert.equal(asked, 2);
});

test('a token as the first message, and a return without', async (t) => {
  let asked = 0;
  const { app, proxy, socket, got } = await start(t, {
    settings: { UPSTREAM_URL: '', AUTH_MODE: '', AUTH_TOKEN_FROM: '', AUTH_FIRST_MESSAGE: 'true' },
    options: { tokenIn: 'message', token: () => { asked += 1; return 'token'; } },
  });
  assert.equal(app.sockets.length, 0);
  const back = next(socket, 'resumed');
  proxy.last().reset();
  socket.send('while away');
  await back;
  await until('the echo', () => got.length === 1);
  assert.equal(asked, 1);
});
