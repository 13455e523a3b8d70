// Looks at a node again and again while it is in a graph: not at those that the page makes only to copy or show them,
// of which it does not say when they are gone. Returns what ends it, until the node is added again.
export function watch(node, look, milliseconds) {
  let timer = null
  const begin = () => {
    clearInterval(timer)
    timer = setInterval(look, milliseconds)
  }
  const { onAdded, onRemoved } = node
  node.onAdded = function (...given) {
    begin()
    return onAdded?.apply(this, given)
  }
  node.onRemoved = function (...given) {
    clearInterval(timer)
    return onRemoved?.apply(this, given)
  }
  if (node.graph) begin()
  return () => clearInterval(timer)
}
