import { networkInterfaces } from 'node:os';
import { HyperMeshError } from '../../base/errors.ts';
import { NODE_RECORD_LIMITS } from '../../wire/node-record.ts';

export interface ListenAddress {
  readonly host: string;
  readonly port: number;
}

/** Where to listen: `host:port`, `[v6]:port`; port 0 for any. Errors: `config-invalid`. */
export function splitAddress(address: string): ListenAddress {
  const match = /^(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})$/.exec(address);
  const port = Number(match?.[3]);
  if (match === null || port > 65_535) {
    throw new HyperMeshError(
      'config-invalid',
      `Expected an address such as [::]:9292 or 192.0.2.1:9292, but got "${address.slice(0, 100)}".`,
    );
  }
  return { host: (match[1] ?? match[2])!, port };
}

export function isLoopback(address: string): boolean {
  const { host } = splitAddress(address);
  return host === 'localhost' || host === '::1' || host.startsWith('127.');
}

/** What a listener on all addresses can be reached at; this machine alone when it has no network. */
export function reachableAt({ host, port }: ListenAddress): string[] {
  if (host !== '::' && host !== '0.0.0.0') return [host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`];
  const found = Object.values(networkInterfaces())
    .flatMap((addresses) => addresses ?? [])
    .filter(
      ({ internal, family, address }) =>
        !internal && (family === 'IPv4' || (host === '::' && !address.startsWith('fe80'))),
    )
    .map(({ address, family }) => (family === 'IPv6' ? `[${address}]:${port}` : `${address}:${port}`));
  return found.length > 0 ? found.slice(0, NODE_RECORD_LIMITS.addressesMax) : [`127.0.0.1:${port}`];
}
