// SignalR asks for a connection by POST, and then opens a WebSocket or polls. The hub is scripted, by the protocol's documents.
import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { randomUUID } from 'node:crypto';
import { test } from 'node:test';
import { HttpTransportType, HubConnectionBuilder, LogLevel } from '@microsoft/signalr';
import { WebSocketServer } from 'ws';
import { listen, startGate, until } from './kit.mjs';

const end = '\x1e'; // of each message

/** Starts a hub with one method, echo, and one event, hello. */
async function startHub(t) {
  const polled = new Map(); // by connection: what waits for a poll, and the poll that waits
  const answer = (text, send) => {
    for (const part of text.split(end).filter(Boolean)) {
      const message = JSON.parse(part);
      if (message.protocol) send(`{}${end}${JSON.stringify({ type: 1, target: 'hello', arguments: ['ana'] })}${end}`);
      else if (message.type === 1) send(JSON.stringify({ type: 3, invocationId: message.invocationId, result: message.arguments[0] }) + end);
    }
  };
  const server = createServer(async (request, response) => {
    const url = new URL(request.url, 'http://hub');
    const id = url.searchParams.get('id');
    let body = '';
    for await (const chunk of request) body += chunk;
    if (url.pathname === '/hub/negotiate') {
      const made = randomUUID();
      response.setHeader('Content-Type', 'application/json').end(JSON.stringify({
        negotiateVersion: 1, connectionId: made, connectionToken: made,
        availableTransports: [{ transport: 'WebSockets', transferFormats: ['Text'] }, { transport: 'LongPolling', transferFormats: ['Text'] }],
      }));
    } else if (request.method === 'GET' && !polled.has(id)) { // the first poll is only there to be answered
      polled.set(id, { waiting: '' });
      response.end();
    } else if (request.method === 'GET') {
      const poll = polled.get(id);
      if (poll.waiting) response.end(poll.waiting);
      else poll.response = response;
      poll.waiting = '';
    } else if (request.method === 'POST') {
      const poll = polled.get(id);
      answer(body, (text) => {
        if (poll.response) poll.response.end(text);
        else poll.waiting += text;
        poll.response = undefined;
      });
      response.end();
    } else { // DELETE
      polled.get(id)?.response?.writeHead(204).end();
      response.writeHead(202).end();
    }
  });
  new WebSocketServer({ server }).on('connection', (socket) => socket.on('message', (data) => answer(String(data), (text) => socket.send(text))));
  return listen(t, server);
}

function connection(t, gate, token, transport) {
  const hub = new HubConnectionBuilder().withUrl(`http://${gate.host}/hub`, { accessTokenFactory: () => token, transport })
    .withAutomaticReconnect([0, 50, 100, 500]).configureLogging(LogLevel.None).build();
  t.after(() => hub.stop());
  return hub;
}

const settings = { HTTP_MODE: 'auth', AUTH_TOKEN_FROM: 'header:Authorization,query:access_token', PATHS: '/hub,/hub/*' };

for (const [name, transport] of [['negotiated', undefined], ['long polling', HttpTransportType.LongPolling]]) {
  test(name, async (t) => {
    const gate = await startGate(t, [await startHub(t)], settings);
    const hub = connection(t, gate, 'sesame', transport);
    const greeted = [];
    hub.on('hello', (whom) => greeted.push(whom));
    await hub.start();
    assert.equal(await hub.invoke('echo', 'olá'), 'olá');
    await until(() => greeted.length === 1, 'the event');
    if (transport === undefined) {
      assert.equal((await gate.kick()).reached, 1);
      await until(() => greeted.length === 2 && hub.state === 'Connected', 'the connection is back');
      assert.equal(await hub.invoke('echo', 'again'), 'again');
    }
    await assert.rejects(connection(t, gate, 'guess', transport).start(), /401/);
  });
}
