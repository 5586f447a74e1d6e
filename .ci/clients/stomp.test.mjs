// STOMP over WebSocket, with heart-beats. The broker is scripted, by STOMP 1.2.
import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { test } from 'node:test';
import { Client } from '@stomp/stompjs';
import WebSocket, { WebSocketServer } from 'ws';
import { listen, startGate, until } from './kit.mjs';

/** Starts a broker that sends what comes to whoever has subscribed, and counts the heart-beats that it hears. */
async function start(t) {
  const broker = { beats: 0 };
  const subscribers = new Set();
  const server = createServer();
  new WebSocketServer({ server, handleProtocols: (offered) => offered.has('v12.stomp') && 'v12.stomp' }).on('connection', (socket) => {
    const beating = setInterval(() => socket.send('\n'), 100);
    socket.on('close', () => { clearInterval(beating); subscribers.delete(socket); });
    socket.on('message', (data) => {
      const text = String(data);
      if (text === '\n') { broker.beats++; return; }
      const [head, ...body] = text.replace(/\0\s*$/, '').split('\n\n');
      const [command, ...headers] = head.trim().split('\n');
      const value = (name) => headers.find((line) => line.startsWith(`${name}:`))?.slice(name.length + 1);
      if (command === 'CONNECT') socket.send('CONNECTED\nversion:1.2\nheart-beat:100,100\n\n\0');
      if (command === 'SUBSCRIBE') subscribers.add(Object.assign(socket, { subscription: value('id') }));
      if (command === 'SEND') {
        for (const to of subscribers) to.send(`MESSAGE\nsubscription:${to.subscription}\nmessage-id:1\ndestination:${value('destination')}\n\n${body.join('\n\n')}\0`);
      }
    });
  });
  return { broker, gate: await startGate(t, [await listen(t, server)]) };
}

function client(t, gate, token, on) {
  const made = new Client({
    webSocketFactory: () => new WebSocket(`ws://${gate.host}/stomp?token=${token}`, ['v12.stomp']), reconnectDelay: 50, heartbeatIncoming: 100, heartbeatOutgoing: 100, ...on,
  });
  t.after(() => made.deactivate({ force: true }));
  made.activate();
  return made;
}

test('send, subscribe, heart-beats, and a client that comes back', async (t) => {
  const { broker, gate } = await start(t);
  const heard = [];
  let connected = 0;
  const made = client(t, gate, 'sesame', {
    onConnect() {
      connected++;
      made.subscribe('/room', ({ body }) => heard.push(body));
      made.publish({ destination: '/room', body: `olá ${connected}` });
    },
  });
  await until(() => heard.includes('olá 1'), 'the message');
  await until(() => broker.beats > 2, 'heart-beats');
  assert.equal((await gate.kick()).reached, 1);
  await until(() => heard.includes('olá 2'), 'the message after the return');
});

test('a wrong token', async (t) => {
  const { gate } = await start(t);
  const message = await new Promise((resolve) => { client(t, gate, 'guess', { onWebSocketError: (event) => resolve(event.message) }); });
  assert.match(message, /401/);
});
