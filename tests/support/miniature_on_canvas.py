"""Scripts of the page that let the miniature run what is on the canvas."""

# The graph on the canvas and those inside its nodes. Not app.graph.subgraphs, which may still have
# those of an earlier workflow.
GRAPHS = "[app.graph, ...app.graph.nodes.map(node => node.subgraph).filter(Boolean)]"
# Puts the miniature in the place of all four loaders, where there are loaders.
LOAD_MINIATURE = """() => {
    const loaders = ['UNETLoader', 'OviTextEncoderLoader', 'VAELoader', 'OviAudioVAELoader']
    for (const graph of GRAPHS) {
        if (!graph.nodes.some(node => node.type === loaders[0])) continue
        const miniature = LiteGraph.createNode('OviMiniature')
        graph.add(miniature)
        for (const [slot, type] of loaders.entries()) {
            const loader = graph.nodes.find(node => node.type === type)
            for (const id of [...loader.outputs[0].links]) {
                const link = graph.links.get(id), target = graph.getNodeById(link.target_id)
                if (target) miniature.connect(slot, target, link.target_slot)
                else graph.outputs[link.target_slot].connect(miniature.outputs[slot], miniature)
            }
            graph.remove(loader)
        }
    }
}""".replace("GRAPHS", GRAPHS)
# A picture's size is left to the widgets: the reference's is too large for the miniature.
LEAVE_SIZE = """() => {
    for (const graph of GRAPHS)
        for (const latent of graph.nodes.filter(node => node.type === 'OviLatent'))
            for (const [slot, { link }] of latent.inputs.entries()) {
                const source = graph.getNodeById(graph.links.get(link)?.origin_id)
                if (source?.type === 'OviImageSize') latent.disconnectInput(slot)
            }
}""".replace("GRAPHS", GRAPHS)
