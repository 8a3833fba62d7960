import { hash } from 'node:crypto';
import type { NodeId } from './channel/index.ts';

/**
 * The nodes that a resource belongs on, best first: rendezvous (highest random weight) hashing, Thaler and Ravishankar 1998. Everybody
 * who knows the same nodes computes the same order, and a node that comes or goes moves only what is its own.
 */
export function placement(resource: string, nodes: readonly NodeId[]): NodeId[] {
  return nodes
    .map((node) => ({ node, weight: hash('sha256', `${resource}\n${node}`, 'hex') }))
    .sort((a, b) => (a.weight < b.weight ? 1 : a.weight > b.weight ? -1 : 0))
    .map(({ node }) => node);
}
