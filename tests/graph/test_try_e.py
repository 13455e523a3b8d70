import pytest, time
from small_graph import *
pytestmark=[pytest.mark.usefixtures("small_files")]
def test_x(run, graph):
    out=graph.sample(); graph.show(out)
    t=time.time(); r=run(graph); print("first",time.time()-t)
    print(parts(r.value(out[0]))[0].shape, [type(x) for x in r.value(out[0]).values()])
    g=Graph(); out=g.sample(seed=8); g.show(out); t=time.time(); r=run(g, preview="latent2rgb"); print("second",time.time()-t)
    print(r.named("preview"))
    m=r.value("1").model if False else None
    for k in ("fp8_e4m3fn","fp8_e4m3fn_fast","fp8_e5m2"):
        g=Graph(); mo=g.model(weight_dtype=k); out=g.sample(mo); g.show(out); t=time.time(); r=run(g); print(k,time.time()-t)
        p=r.value(mo[0]); print(p.model.manual_cast_dtype, p.model.diffusion_model.blocks[0].self_attn.q.weight.dtype, parts(r.value(out[0]))[0].std())
